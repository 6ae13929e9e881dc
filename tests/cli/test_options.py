"""The options are those of Settings, neither more nor fewer."""

from atmc_cli import compress, evaluate, options

from atmc.engine.settings import FIELDS, Settings


def declared(command):
    return {name: p for p in command.params for name in p.opts}


def test_each_setting_is_an_option_with_help():
    by_name = declared(compress.command)
    for key in FIELDS:
        option = by_name[options.flag(key)]
        assert option.name == key
        assert option.type.name == "text"  # checked by Settings alone
        assert len(option.help) > 5
        assert option.help.startswith(FIELDS[key].description)


def test_the_help_shows_the_default_of_settings(atmc):
    shown = " ".join(atmc("compress", "--help").stdout.split())
    for key, field in FIELDS.items():
        if field.default is not None:
            assert f"[default: {field.default}]" in shown, key


def test_compress_has_a_few_options_more():
    more = declared(compress.command).keys() - {options.flag(key) for key in FIELDS}
    assert more == {"--config", "--output", "--resume", "--overwrite", "--quiet"}


def test_evaluate_has_its_options():
    assert declared(evaluate.command).keys() == {
        *("artifact", "--dataset", "--data-root", "--eps", "--eval-steps", "--step-size"),
        *("--restarts", "--examples", "--attack", "--seed", "--device", "--json"),
        *("--loss", "--source", "--eps-grid", "--plot", "--download", "--image-size"),
        *("--model", "--certify"),
    }


def test_text_as_a_person_writes_it():
    texts = {
        "budget_bits": "17kB",
        "eps": "8/255",
        "bits": "3",
        "clean_weight": "0.5",
        "lr": "1e-3",
    }
    settings = Settings.of(texts)
    assert (settings["budget_bits"], settings["eps"], settings["bits"]) == (136_000, 8 / 255, 3)
    assert (settings["clean_weight"], settings["lr"]) == (0.5, 1e-3)
