"""Every seam of the fabric, one small file each; nothing here does IO."""
