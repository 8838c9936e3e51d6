from nl.testing import StoreConformance
from nl_store_example import ExampleDictOptions, ExampleDictStore


class TestExampleDictStore(StoreConformance):
    def make_store(self, context, folder): return ExampleDictStore(ExampleDictOptions(), context)
