"""From logits to labels on the CT's own grid."""
