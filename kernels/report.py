# %% [markdown]
# # Histopathologic cancer detection: report of a campaign
#
# What was asked, what the tiles look like, what was trained, how good it is and how sure that is, where it errs, and what is not
# known. Every number below is computed in this notebook from the files that the kernels of the campaign left.
#
# It runs from top to bottom on Kaggle, where those outputs are mounted, and in Jupyter beside a campaign's `outputs/`, as
# `build_kernel.py run` fetches them: no account, no GPU, no network. The last cell leaves `report.html`, the same in one file.

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
# ## Where it errs, and what it looks at

# %%
report.mistakes()

# %%
report.explanations()

# %% [markdown]
# ## The average of the members, and the leaderboard

# %%
report.ensemble()

# %%
report.leaderboard()

# %% [markdown]
# ## Conclusion

# %%
report.conclusion()

# %% [markdown]
# ## The same report in one file

# %%
session.invalidate_record()
names = report.write(session.working)
record = session.write_outputs(names, devices=["CPU"], **report.ids())
