"""Writes docs/SETTINGS.md: the settings of a run, and the models, as they are declared.

python docs/settings_table.py
"""

from pathlib import Path

from atmc import data, models
from atmc.engine.settings import FIELDS, GROUPS, Settings

HEAD = """# Settings

A setting is a key of a config file, an option of `atmc compress` (`budget_bits` is
`--budget-bits`) and a keyword of `atmc.compress`. `python docs/settings_table.py` makes this page.

**Terms.** The *dense start* is the network, not compressed, that compression starts from. W = U V +
C in each layer; U, V and C are its *factors*. A *level* is a value of a tensor's codebook; of a
nonzero its index is stored. A *duplicate* W' and a *dual* are the auxiliary and dual variables of
ADMM. *Paper bits* are nonzeros × bits per value, as papers count; *file bits* are 8 × the length of
the file. The *worst case* is the share of examples that are classified correctly under every attack
of the evaluation, *certified accuracy* the share for which a bound proves it under any.
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
    return text + data_sets() + zoo()


def data_sets() -> str:
    text = (
        "\n## Defaults by data set\n\nWhere a setting says that its default is the data set's.\n\n"
    )
    text += (
        "| data set | `model` | `eps` | `dense_epochs`, `epochs`, `level_epochs` | `eval_steps` |\n"
    )
    text += "|---|---|---|---|---|\n"
    for name in data.choices():
        entry = data.find(name)
        assert entry is not None
        chosen = entry.settings
        epochs = ", ".join(str(chosen[f"{stage}epochs"]) for stage in ("dense_", "", "level_"))
        eps, steps = chosen.get("eps"), chosen.get("eval_steps")
        radius = "that of its `Dataset`" if eps is None else f"{eps:g}"
        if eps is not None and eps < 0.05:
            radius = f"{255 * eps:g}/255"
        text += f"| `{name}` | {chosen.get('model') or ''} | {radius} | {epochs} "
        text += f"| {'that of its `Dataset`' if steps is None else steps} |\n"
    return text


def zoo() -> str:
    text = "\n## Models\n\nThe zoo; in a name of `model` numbers take the place of the fields.\n\n"
    text += "| model | inputs | data set | what it is |\n|---|---|---|---|\n"
    for family in models.families():
        inputs = " × ".join(map(str, family.input_shape or ()))
        text += f"| `{family.name}` | {inputs} | {family.dataset or ''} | {family.description} |\n"
    return text


if __name__ == "__main__":
    Path(__file__).with_name("SETTINGS.md").write_text(page(), encoding="utf-8")
