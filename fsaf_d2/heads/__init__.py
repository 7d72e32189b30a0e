"""What turns a pyramid's features into those that branches read."""
