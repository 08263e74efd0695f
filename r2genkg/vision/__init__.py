"""Images and labels -> a classifier -> disease-aware vision tokens cut by Grad-CAM, and their audit."""
