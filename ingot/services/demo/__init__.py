"""The demo: a recipe run end to end, its model served, and what each stage taught it shown side by side."""
