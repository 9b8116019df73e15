"""A part of the graph that is refused while the rest runs: the person is told which, and why."""

from __future__ import annotations

import pytest

from frontend import SECONDS, Frontend

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SET = """([type, name, value]) => {
    const node = app.graph._nodes.find(node => node.type === type);
    node.widgets.find(widget => widget.name === name).value = value;
}"""
TOASTS = ".p-toast-message-error"


def queue(frontend: Frontend) -> None:
    frontend.run("async () => { await app.queuePrompt(0, 1) }")


@pytest.mark.parametrize(
    ("language", "summary"),
    [
        ("english", "Load Image Dataset was refused"),
        ("chinese", "“加载图像数据集”未通过检查"),
    ],
)
def test_a_refused_part_says_why_once_and_until_the_next_run(
    language: str, summary: str, request: pytest.FixtureRequest
) -> None:
    frontend: Frontend = request.getfixturevalue(language)
    frontend.open_workflow()
    frontend.run(SET, ["AtelierTrainLoRA", "max_train_steps", 1])
    frontend.run(SET, ["AtelierLoadDataset", "folder", "not_there"])
    queue(frontend)
    toasts = frontend.page.locator(TOASTS)
    toasts.first.wait_for(timeout=60 * SECONDS)
    (told,) = toasts.all_inner_texts()
    assert summary in told
    assert told.count("folder: there is no folder") == 1
    assert "folder - " not in told  # ComfyUI's prefix
    frontend.run(SET, ["AtelierLoadDataset", "folder", "glossy"])
    queue(frontend)
    toasts.first.wait_for(state="detached", timeout=60 * SECONDS)
    frontend.server.interrupt()
    assert frontend.own_errors() == []
