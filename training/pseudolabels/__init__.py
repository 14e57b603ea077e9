"""Labels that networks give to CTs: where they agree, corrected where an eye saw mistakes."""
