"""Measurements: what a model scores, what each part of the recipe is worth, how fast it is. See RESULTS.md.

Run from the repository's root as `python -m benchmarks.NAME`:

    quality         Fréchet and kernel distance, retrieval accuracy, beside what real images score
    words           which kinds of prompts a model understands
    human_eval      a blind recognition test for a reader, of emoji or icons
    captioner       scores of captioners
    speed           images/s beside another commit; distance after a number of images
    demo_latency    how soon the web page opens and answers
    demo_memory     whether its memory grows with the requests
    demo_memory     whether the web page's memory grows
    ablation        train a grid of recipes and tabulate it (grids/)
    stability       how often a recipe trains well, over learning rates and seeds
    search          search for a better recipe with Optuna (studies/)
    icons           diversity and control of models trained on icons
    icon_judge      train the judge that reads what an icon shows
    latent_toy      a small data set that shows within minutes whether the latent is used
    gpu_visit       measure and train on a GPU that is lent for minutes
    release         make the released model and its card
    baselines.*     a plain training loop and gigagan-pytorch, for comparison

protocol.py holds what they share: which captions are drawn, and how a set of pictures is scored; machine.py,
what they note about the machine.
"""
