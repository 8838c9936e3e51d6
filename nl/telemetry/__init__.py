"""What the server tells about itself: logs. Imports nothing of the project but errors."""
