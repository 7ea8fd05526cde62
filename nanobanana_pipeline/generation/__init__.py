"""The engine that turns requests into verified image files through the task API."""
