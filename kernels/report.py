# %% [markdown]
# # Histopathologic cancer detection: report of a campaign
#
# A tile is a 96 x 96 pixel image of a stained section of a lymph node. The label is 1 when the centre, 32 x
# 32 pixels, holds at least one pixel of tumour. Kaggle's competition scores the probabilities for 57,458
# unlabelled tiles by the area under the ROC curve (AUC).
#
# This notebook goes from the data to the score: exploration, folds, models and their training, results with
# their uncertainty, the hardest errors, conclusions and limitations. Every number below is computed here
# from the outputs of the campaign's kernels. The kernels trained on GPUs; this notebook needs none, no
# account and no network, and runs on Kaggle, or in Jupyter beside the `outputs/` folder that
# `build_kernel.py run` fetches. The code that did the work is below the headings: unfold a line such as
# `make_folds` to read it.

# %% tags=["library"]
PARAMETERS: dict[str, object] = {}  # `build_kernel.py build` puts the parameters and the library here

# %%
import warnings

import pandas as pd
from IPython.display import display
from sklearn.metrics import roc_auc_score

from lib.config import to_toml
from lib.data.folds import FoldError, fold_table_id, make_folds
from lib.evaluation.metrics import auc
from lib.report.document import Report
from lib.report.frame_table import show_table
from lib.report.source import list_sources, show_source
from lib.runtime.notebook import keep_executed_notebook
from lib.runtime.session import open_notebook

session = open_notebook(PARAMETERS)
report = Report.of(session)

# %% [markdown]
# ## Summary

# %%
report.section("summary")

# %% [markdown]
# ## The problem

# %%
report.section("problem")

# %% [markdown]
# ## The data
#
# `tiles` has one row for each labelled tile: its id (the SHA-1 of its pixels), its label, the stain group
# that its colours put it in, and its slide where a map of the slides was attached.

# %%
tiles = report.tiles()
by_label = tiles.groupby("label").agg(tiles=("id", "size"), stain_groups=("stain_group", "nunique"))
show_table("Tiles and stain groups of each label", by_label)

# %%
report.section("data")

# %% [markdown]
# ## Exploration
#
# Are colours alone informative? A network that only learns the stain of a laboratory would do well on
# random folds and badly on a new slide. The share of tumour in each stain group shows how much there is to
# learn that way.

# %%
groups = tiles.groupby("stain_group")["label"].agg(tiles="size", share_of_tumour="mean")
spread = groups.describe().loc[["min", "25%", "50%", "75%", "max"]].rename_axis("of the groups")
show_table(f"Tiles and share of tumour of the {len(groups)} stain groups", spread, places=3)

# %%
report.section("exploration")

# %%
show_source("lib.data.stain_groups", "stain_features", "stain_groups")

# %%
show_source("lib.data.eda", "explore", "near_copies", "outliers")

# %% [markdown]
# ### Plan of analysis

# %%
report.section("plan")

# %% [markdown]
# ### Folds
#
# Tiles of one slide are alike, so a random split overstates a score. With `fold_split = "stain"` a group of
# similarly stained tiles is never divided, which comes near to unseen slides where no map of the slides
# exists.

# %%
show_source("lib.data.folds", "make_folds", "_grouped_folds")

# %%
config = session.parameters.config
outputs = report.context.inputs.folds.get(session.parameters.experiments[0], [])
recorded = sorted({output.record.fold_table_id[:8] for output in outputs})
try:
    folds = make_folds(tiles, split=config.fold_split, number=config.num_folds, seed=config.seed)
    print(f"by {config.fold_split}: fold table {fold_table_id(folds)[:8]}, the kernels used {recorded}")
    by_fold = tiles.merge(folds, on="id").groupby("fold")["label"].agg(tiles="size", share_of_tumour="mean")
    display(show_table("Tiles and share of tumour of each fold", by_fold))
except FoldError as error:  # without an output of prepare there are no tiles
    print(error)

# %% [markdown]
# ## The models
#
# The options of each experiment that differ from the defaults. `docs/configuration.md` explains all
# options.

# %%
for name, options in zip(session.parameters.experiments, session.parameters.configs, strict=True):
    print(f"# {name}\n{to_toml(options)}")

# %%
report.section("models")

# %%
show_source("lib.model.network", "Classifier", "build_network")

# %%
show_source("lib.model.pooling", "AverageMaxPool", "GeneralisedMeanPool", "GatedAttentionPool", "build_pool")

# %% [markdown]
# ## Training
#
# The recipe of the kernel that trains a fold, and what it calls: augmentation of a whole batch at once, the
# optimizer with its schedule, an epoch, a member of a fold.

# %%
show_source("kernels.train", "recipe")

# %%
show_source("lib.image.augment", "augment", "symmetries", "jitter_colours")

# %%
show_source("lib.training.optimizer", "build_optimizer", "learning_rate_at", "OptimizerStep")

# %%
show_source("lib.training.epoch", "train_one_epoch", "positive_weight")

# %%
show_source("lib.training.fold", "train_member", "_train_member")

# %%
report.section("training")

# %% [markdown]
# ### One fold, trained here
#
# With `TRAIN = True` the next cell trains fold 0 of the first experiment on some of the tiles, in this
# notebook, with the functions above. It needs torch and `tiles-train.npy`, which is mounted on Kaggle and is
# not fetched; it uses a GPU where there is one. So few tiles show that the code trains, not how good a score
# can get: the scores of the campaign follow below.

# %%
TRAIN = False
SUBSET, EPOCHS = 2_000, 2  # tiles, passes over four fifths of them

if TRAIN:
    warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which is not used here
    from lib.training.subset import train_on_subset

    trained = train_on_subset(session, tiles=SUBSET, epochs=EPOCHS)
    print(f"AUC {trained.auc:.4f} on the {trained.predicted:,} tiles of the fold, {trained.note}")
    display(show_table("Epochs of the fold trained here", trained.history, places=6))

# %%
show_source("lib.training.subset", "train_on_subset")

# %% [markdown]
# ## Hyperparameter search

# %%
report.section("search")

# %%
show_source("lib.training.search", "run_search")

# %% [markdown]
# ## Results
#
# A tile is scored by networks that did not see it, nor any tile of its fold. The interval resamples whole
# groups, because tiles of a group are not independent.

# %%
pooled = [
    (summary.experiment, len(labels), auc(labels, predicted), roc_auc_score(labels, predicted))
    for summary in report.context.summaries
    for labels, predicted in [summary.table[["label", "probability"]].to_numpy().T]
]
show_table(
    "AUC of the out-of-fold predictions, computed twice",
    pd.DataFrame(pooled, columns=["experiment", "tiles", "AUC", "the same by scikit-learn"]),
)

# %%
report.section("results")

# %%
show_source("lib.evaluation.metrics", "auc", "auc_interval", "group_interval")

# %% [markdown]
# ### ROC and precision-recall curves

# %%
report.section("curves")

# %% [markdown]
# ### Decisions at a threshold

# %%
report.section("decisions")

# %% [markdown]
# ### Calibration

# %%
report.section("calibration")

# %%
show_source("lib.evaluation.calibration", "fit_platt_scaling", "expected_calibration_error")

# %% [markdown]
# ### Grouped and stratified folds compared

# %%
report.section("splits")

# %% [markdown]
# ## The hardest errors

# %%
report.section("mistakes")

# %% [markdown]
# ### Attribution maps

# %%
report.section("explanations")

# %%
show_source("lib.explain.attribution", "attribute", "method_of", "_grad_cam", "_rollout")

# %% [markdown]
# ## The ensemble

# %%
report.section("ensemble")

# %%
show_source("lib.inference.ensemble")

# %% [markdown]
# ## Leaderboard

# %%
report.section("leaderboard")

# %% [markdown]
# ## Insights

# %%
report.section("insights")

# %% [markdown]
# ## Conclusion

# %%
report.section("conclusion")

# %% [markdown]
# ### Future work

# %%
report.section("future")

# %% [markdown]
# ## Reproducibility

# %%
report.section("reproducibility")

# %% [markdown]
# ## References

# %%
report.section("references")

# %% [markdown]
# ## The code
#
# The modules that this notebook carries. `show_source("lib.training.workers")` shows a whole file, also of
# those that run only in the other kernels.

# %%
list_sources()

# %%
session.invalidate_record()
names = report.write(session.working) | keep_executed_notebook(session.working)
record = session.write_outputs(names, devices=["CPU"], **report.ids())
