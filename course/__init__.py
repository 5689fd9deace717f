"""What makes the notebooks a course: exercises, catching up, pages to print, a room of people."""

DTYPE = "float32"  # in which the notebooks load the model on every machine, so that their prose holds there
