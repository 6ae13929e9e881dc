"""Writes docs/SETTINGS.md: the settings of a run, and the models, as they are declared.

python docs/settings_table.py
"""

from pathlib import Path

from atmc import models
from atmc.engine.settings import FIELDS, GROUPS, Settings

HEAD = """# Settings

A setting is a key of a config file, an option of `atmc compress` (`budget_bits` is
`--budget-bits`) and a keyword of `atmc.compress`. `python docs/settings_table.py` makes this page.
"""


def page() -> str:
    text = HEAD
    group = ""
    for name, field in FIELDS.items():
        if GROUPS[name] != group:
            group = GROUPS[name]
            kind = Settings.model_fields[group].annotation
            assert kind is not None and kind.__doc__ is not None
            text += f"\n## {group.capitalize()}\n\n{kind.__doc__.splitlines()[0]}\n\n"
            text += "| setting | default | what it is |\n|---|---|---|\n"
        default = "" if field.default is None else f"`{field.default}`"
        description = str(field.description).replace("|", "\\|")
        text += f"| `{name}` | {default} | {description} |\n"
    return text + zoo()


def zoo() -> str:
    text = "\n## Models\n\nThe zoo; in a name of `model` numbers take the place of the fields.\n\n"
    text += "| model | inputs | data set | what it is |\n|---|---|---|---|\n"
    for family in models.families():
        inputs = " × ".join(map(str, family.input_shape or ()))
        text += f"| `{family.name}` | {inputs} | {family.dataset or ''} | {family.description} |\n"
    return text


if __name__ == "__main__":
    Path(__file__).with_name("SETTINGS.md").write_text(page(), encoding="utf-8")
