"""What is trained: the experiment file, and the model it declares."""
