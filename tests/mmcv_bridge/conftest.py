"""mmdet's registry as the default one."""

from tests.mmdet_scope import mmdet_scope  # noqa: F401
