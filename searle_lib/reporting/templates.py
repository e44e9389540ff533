"""The HTML templates (*.html.j2) of this folder. Autoescape is on: text from a data set is never markup."""

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("searle_lib.reporting", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, **values) -> str:
    """Render the template `<name>.html.j2` with these values and return the HTML."""
    return _ENVIRONMENT.get_template(f"{name}.html.j2").render(values)
