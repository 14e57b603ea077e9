"""What is written: files that appear whole or not at all; what is in those beside the labels."""
