"""Studies: claims about fine-tuning methods, tested by runs of this machine. See `study.py` for what a study is."""
