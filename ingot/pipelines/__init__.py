"""What turns objects into objects: the store and its artifacts, recipes and runs, and one module or folder
for each stage. Nothing here knows of HTTP, users or Kubernetes."""
