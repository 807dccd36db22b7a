"""``python -m haq_env`` is the command ``haq-env``."""

from haq_env.cli import main

if __name__ == "__main__":
    main()
