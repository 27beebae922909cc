"""The page that answers "did it work?": one HTML file, made of a run's files alone. Never changes what is trained."""
