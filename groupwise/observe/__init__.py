"""What a person sees of a run: metrics, transcripts, progress, figures. Never changes what is trained."""
