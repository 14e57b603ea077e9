"""What a data folder holds: cases in either layout, pseudo-labels, tissues; and its folds."""
