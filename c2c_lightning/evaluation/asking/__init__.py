"""Putting the questions: the methods and controls, what each batch of questions needs of the models, and the answers."""
