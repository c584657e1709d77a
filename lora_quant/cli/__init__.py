"""Arguments -> plain object -> run -> exit code. The only room that prints."""
