"""What a pretrained encoder is judged by: tasks that are trained on labels, and their scores."""
