"""What makes the notebooks a course: exercises, catching up, pages to print, a room of people."""
