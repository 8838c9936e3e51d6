# `make VERB` is `./dev VERB`, for fingers that type make. The verbs live in ./dev, which needs no make.
.PHONY: serve test lint bench proto
serve test lint bench proto:
	@./dev $@
