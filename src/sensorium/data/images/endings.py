"""Endings of the names of pictures: those that are read, and others that people have."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff",
     ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".apng", ".jp2", ".j2k", ".jpx", ".avif",
     ".tga", ".ico"}
)  # fmt: skip
UNREAD = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".psd", ".psb", ".xcf", ".svg", ".svgz", ".eps", ".ai", ".pdf", ".exr", ".hdr",
     ".dds", ".pcx", ".djvu", ".dcm", ".dicom", ".nii", ".nrrd", ".mha", ".czi", ".lif", ".nd2", ".svs", ".ndpi",
     ".vsi", ".fits", ".fit", ".raw", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".dng", ".orf",
     ".rw2", ".raf", ".pef", ".x3f", ".rwl", ".3fr", ".iiq", ".webm", ".mp4", ".mov", ".avi", ".mkv"}
)  # fmt: skip
"""Kinds of pictures and videos that are not read as images."""
VIDEO = frozenset({".webm", ".mp4", ".mov", ".avi", ".mkv"})
SHOWN = EXTENSIONS | (UNREAD - VIDEO)
"""What a person takes for a picture: of those that are not read the reason is told, where new pictures are used."""
