"""Does a debate answer better than the same tokens spent otherwise? Asks a running stack the labelled questions.

    python bench/debate_quality.py                                              # a small subset, a few minutes on a CPU
    python bench/debate_quality.py --questions 120 --rounds 1,2 --json out.json  # everything

Compares each debate strategy with a single answer and with self-consistency (majority of samples of the same model) that
may use as many completion tokens as the debate used for the same question. docs/debate-quality.md has the method.
Each reply is kept in a file; after an interruption the same command goes on. Exit code 1 when a request failed.
"""

from bench.debate_quality.command import main

if __name__ == "__main__":
    main()
