"""What you keep: the console page, and a folder of files."""
