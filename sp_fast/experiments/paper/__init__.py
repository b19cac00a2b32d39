"""The experiments of the paper (Li et al., CVPR 2023): its tables and figures."""
