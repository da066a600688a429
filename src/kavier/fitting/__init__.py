"""From measurements to the numbers of the models: fits that anyone can run again."""
