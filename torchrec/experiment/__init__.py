"""What is trained: the experiment file, the model it declares, the bundle it ends in."""
