# %% [markdown]
# # Histopathologic cancer detection: report of a campaign
#
# The problem, the data, the models, the scores and their uncertainty, the hardest errors, the conclusions and
# the limitations. Every number below is computed in this notebook from the outputs of the campaign's kernels.
#
# The notebook runs on Kaggle, where those outputs are mounted, and in Jupyter beside the `outputs/` folder
# that `build_kernel.py run` fetches. It needs no account, no GPU and no network. The last cell writes
# `report.html`, the same report in one file.

# %% tags=["library"]
PARAMETERS: dict[str, object] = {}  # `build_kernel.py build` puts the parameters and the library here

# %%
from lib.report.document import Report
from lib.runtime.session import open_notebook

session = open_notebook(PARAMETERS)
report = Report.of(session)

# %% [markdown]
# ## The problem

# %%
report.problem()

# %% [markdown]
# ## The data

# %%
report.data()

# %%
report.exploration()

# %% [markdown]
# ## The models and their training

# %%
report.models()

# %%
report.training()

# %%
report.search()

# %% [markdown]
# ## The results

# %%
report.results()

# %%
report.curves()

# %%
report.decisions()

# %%
report.calibration()

# %%
report.splits()

# %% [markdown]
# ## The hardest errors, and attribution maps

# %%
report.mistakes()

# %%
report.explanations()

# %% [markdown]
# ## The ensemble and the leaderboard

# %%
report.ensemble()

# %%
report.leaderboard()

# %% [markdown]
# ## Conclusion

# %%
report.conclusion()

# %% [markdown]
# ## The report in one file

# %%
session.invalidate_record()
names = report.write(session.working)
record = session.write_outputs(names, devices=["CPU"], **report.ids())
