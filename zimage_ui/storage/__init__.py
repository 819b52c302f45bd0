"""Pictures become files: encoded and written in the background, whole or not at all, with their settings inside."""
