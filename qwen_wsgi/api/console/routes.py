"""The blueprints of the console, for the application."""

from __future__ import annotations

from typing import Final

from flask import Blueprint

from qwen_wsgi.api.console import (
    assets,
    doctor,
    keys,
    live,
    login,
    overview,
    recipes,
    sign_in,
    try_it,
    usage,
)

BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    assets.blueprint,
    sign_in.blueprint,
    sign_in.for_signed_in,
    overview.blueprint,
    live.blueprint,
    usage.blueprint,
    try_it.blueprint,
    try_it.for_scripts,
    login.blueprint,
    keys.blueprint,
    recipes.blueprint,
    doctor.blueprint,
)
