"""What patches and synthetic CTs are drawn with: chance, warps, and what is done axis by axis."""
