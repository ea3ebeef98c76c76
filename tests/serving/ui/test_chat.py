"""The chat used as a person would, in a real Chromium."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import expect

from tests.serving.ui.world import asked

pytestmark = pytest.mark.browser


def ask(page, text):
    asked = page.locator(".question").count()
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".question")).to_have_count(asked + 1)


def answer(page):
    return page.locator("article.answer").last


def done(page):
    answer(page).locator(".tools, .trouble").first.wait_for()
    return answer(page)


def wait(check, seconds=60.0):
    until = time.monotonic() + seconds
    while not check() and time.monotonic() < until:
        time.sleep(0.02)
    assert check()


def test_answer_is_visible_before_it_ends_and_shows_how_it_came(world, sign_in, samples):
    page = sign_in()
    finished = len(world.engine.finished)
    world.engine.delay = 0.5
    try:
        ask(page, "How do I install it?")
        expect(answer(page)).to_contain_text("You need Python")
        assert len(world.engine.finished) == finished  # the engine is still at it
        expect(page.get_by_label("Stop the answer")).to_be_visible()
    finally:
        world.engine.delay = 0.012
    shown = done(page)
    call = world.engine.calls[-1]
    assert (call.endpoint, call.task, asked(call), call.thread_id) == (
        "assistant", "agent", "How do I install it?", call.payload["conversation"]["id"],
    )  # fmt: skip
    assert world.identity.authenticate(call.credential).name == "admin"
    expect(shown.locator(".badge")).to_have_text("Quoted from documents")
    expect(shown.locator(".cite")).to_have_text(["1", "2"])
    shown.locator("summary").first.click()
    expect(shown.locator(".how-body")).to_contain_text("documents, 97% sure")
    expect(shown.locator(".step .name")).to_contain_text(["route", "search", "extract answer"])
    expect(shown.locator(".step").nth(1)).to_contain_text("5 passages")
    expect(shown.locator(".step .ms").nth(1)).to_have_text("15 ms")
    expect(page).to_have_url(f"{world.url}/?thread={call.thread_id}")


def test_citation_shows_its_quote_and_opens_the_document_there(world, sign_in, samples):
    page = sign_in()
    ask(page, "How do I install it?")
    chip = done(page).locator(".cite").nth(1)
    chip.hover()
    expect(page.locator("#cite-card q")).to_have_text(samples.quotes[1])
    chip.click()
    frame = page.frame_locator("#panel iframe")
    expect(frame.locator("#passage")).to_have_text(samples.quotes[1])
    expect(frame.locator("h1")).to_have_text("Installing the service")
    box = frame.locator("#passage").bounding_box()
    assert box is not None
    assert 0 < box["y"] < 860
    assert world.engine.invoked[-1].task == "document"
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_have_count(0)
    expect(chip).to_be_focused()
    with page.context.expect_page() as opened:
        chip.click(modifiers=["Control"])
    expect(opened.value.locator("#passage")).to_have_text(samples.quotes[1])


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stopping_closes_the_call_and_keeps_what_was_said(world, sign_in, way):
    page = sign_in()
    closed = len(world.engine.closed)
    ask(page, "slow please")
    expect(answer(page)).to_contain_text("word word word")
    if way == "button":
        page.get_by_label("Stop the answer").click()
    else:
        page.keyboard.press("Escape")
    wait(lambda: len(world.engine.closed) == closed + 1)
    assert world.engine.closed[-1] == world.engine.calls[-1].request_id
    expect(answer(page)).to_contain_text("This answer was stopped.")
    text = answer(page).locator(".prose").inner_text()
    assert text.startswith("word word word")
    ask(page, "How do I install it?")  # the next question is answered
    expect(done(page)).to_contain_text("three gigabytes")


def test_an_answer_goes_on_while_its_page_is_reloaded_or_elsewhere(world, sign_in):
    page = sign_in()
    calls = len(world.engine.calls)
    ask(page, "slow please")
    prose = answer(page).locator(".prose")
    expect(prose).to_contain_text("word word word")
    expect(page).to_have_url(re.compile("thread="))
    address = page.url
    before = len(prose.inner_text())
    page.reload()
    expect(page.locator(".question")).to_contain_text("slow please")
    expect(prose).to_have_text(re.compile(f"^.{{{before + 100},}}"), timeout=20_000)  # and goes on growing
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    page.goto(address)
    expect(prose).to_contain_text("word word word")
    assert len(world.engine.calls) == calls + 1  # nothing was asked again
    page.get_by_label("Stop the answer").click()
    expect(answer(page)).to_contain_text("This answer was stopped.")
    wait(lambda: world.engine.closed[-1] == world.engine.calls[-1].request_id)


def test_a_question_is_edited_and_asked_again_in_a_conversation_of_its_own(world, sign_in):
    page = sign_in()
    ask(page, "Which city?")
    done(page)
    first = world.engine.calls[-1].thread_id
    ask(page, "How do I install it?")
    done(page)
    question = page.locator(".question").last
    question.hover()
    question.get_by_role("button", name="Edit and send again").click()
    box = page.get_by_label("Edit your question")
    expect(box).to_have_value("How do I install it?")
    box.fill("How do I install it on macOS?")
    page.locator(".edit-form").get_by_role("button", name="Send").click()
    expect(page.locator(".question")).to_have_text(["Which city?", "How do I install it on macOS?"])
    expect(done(page)).to_contain_text("three gigabytes")
    call = world.engine.calls[-1]
    assert call.thread_id != first
    assert [item["role"] for item in call.payload["input"]] == ["user", "assistant", "user"]
    answer(page).get_by_role("button", name="Answer again").click()
    wait(lambda: world.engine.calls[-1] is not call)
    assert asked(world.engine.calls[-1]) == "How do I install it on macOS?"
    done(page)
    assert [message.text for message in world.engine.threads.said[first]][2] == "How do I install it?"  # stays as it was


def test_a_tool_asks_first_and_its_arguments_can_be_edited(world, sign_in, samples):
    page = sign_in()
    ask(page, "approve please")
    card = answer(page).locator(".ask").first
    expect(card).to_contain_text(f"May {samples.xss[1]} be called?")
    arguments = card.get_by_role("textbox")
    expect(arguments).to_have_value(re.compile("Graz"))
    arguments.fill("no JSON")
    card.get_by_role("button", name="Approve").click()
    expect(card).to_contain_text("must be a JSON object")
    arguments.fill('{"city": "Wien"}')
    card.get_by_role("button", name="Approve").click()
    expect(answer(page).locator(".ask")).to_have_count(1)
    answer(page).locator(".ask").get_by_role("button", name="Reject").click()
    expect(page.locator("article.answer")).to_have_count(2)
    expect(done(page)).to_contain_text("could not find")
    sent = world.engine.calls[-1].payload["input"]
    assert [(item["type"], item["approve"]) for item in sent] == [
        ("mcp_approval_response", True),
        ("mcp_approval_response", False),
    ]
    assert sent[0]["arguments"] == '{"city": "Wien"}'


def test_threads_are_searched_and_exported(world, sign_in):
    page = sign_in()
    ask(page, "How do I install it?")
    done(page)
    world.engine.threads.add("user:admin", "Rotating the pepper", time.time())
    page.get_by_label("Search conversations").fill("pepper")
    expect(page.locator(".thread")).to_have_count(1)
    page.get_by_label("Search conversations").fill("nothing has this")
    expect(page.locator(".empty-list")).to_be_visible()
    page.get_by_label("Search conversations").fill("")
    with page.expect_download() as got:
        page.locator(".thread.current .export").click()
    text = got.value.path().read_text()
    assert text.startswith("# How do I install it?")
    assert "[1] Installing the service (guide/install.md)" in text


def test_thumb_is_sent_at_once_and_again_with_its_comment(world, sign_in):
    page = sign_in()
    world.feedback.clear()
    ask(page, "How do I install it?")
    shown = done(page)
    shown.get_by_role("button", name="Not helpful").click()
    expect(shown.get_by_role("button", name="Not helpful")).to_have_attribute("aria-pressed", "true")
    request = world.engine.calls[-1].request_id
    wait(lambda: world.feedback == [(request, False, None, "admin")])
    shown.get_by_label("What was wrong or missing? (optional)").fill("Name the <version>.")
    page.keyboard.press("Enter")
    expect(shown).to_contain_text("Thank you for the comment.")
    wait(lambda: world.feedback[1:] == [(request, False, "Name the <version>.", "admin")])


def test_threads_are_listed_opened_renamed_and_deleted(world, sign_in):
    page = sign_in()
    ask(page, "How do I install it?")
    done(page)
    thread = world.engine.calls[-1].thread_id
    current = page.locator(".thread.current")
    expect(current).to_contain_text("How do I install it?")
    page.get_by_label("Your question").fill("and what is typed")
    page.reload()  # a conversation survives a reload, with its citations
    expect(page.get_by_label("Your question")).to_have_value("and what is typed")
    expect(answer(page)).to_contain_text("three gigabytes")
    expect(answer(page).locator(".cite")).to_have_count(2)
    current.get_by_role("button", name=re.compile("^Rename")).click()
    page.get_by_label("Title", exact=True).fill("  Setting   up ")
    page.keyboard.press("Enter")
    expect(current.locator(".thread-open span")).to_have_text("Setting up")
    wait(lambda: world.engine.threads.rows[thread][1].title == "Setting up")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".hello")).to_be_visible()
    page.locator(f'a[href="/?thread={thread}"]').click()
    expect(answer(page)).to_contain_text("three gigabytes")
    current.get_by_role("button", name="Delete Setting up").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert thread in world.engine.threads.rows
    current.get_by_role("button", name="Delete Setting up").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(f'a[href="/?thread={thread}"]')).to_have_count(0)
    expect(page.locator(".hello")).to_be_visible()
    wait(lambda: thread not in world.engine.threads.rows)


def test_a_thread_of_another_caller_is_not_there(world, sign_in):
    other = world.engine.threads.add("user:someone-else", "Secret plans", time.time())
    page = sign_in(world.alice_key)
    page.goto(f"{world.url}/?thread={other}")
    expect(page.get_by_text("This conversation does not exist any more.")).to_be_visible()
    assert "Secret plans" not in page.content()
    expect(page.get_by_label("Agent").locator("option")).to_have_text(["assistant", "researcher"])
    page.get_by_label("Agent").select_option("researcher")
    ask(page, "How do I install it?")
    done(page)
    assert world.engine.calls[-1].endpoint == "researcher"
    page.reload()  # the conversation goes on with the agent that answered it
    expect(page.get_by_label("Agent")).to_have_value("researcher")
    page.goto(f"{world.url}/?agent=researcher")  # the link that `databricks.agents.deploy` gives ends here
    expect(page.get_by_label("Agent")).to_have_value("researcher")


def test_who_may_ask_no_agent_is_told_what_to_do(world, sign_in):
    asked = len(world.engine.calls)
    page = sign_in(world.identity.create_key("newcomer")[1])
    expect(page.locator(".hello")).to_contain_text("An administrator grants CAN_QUERY")
    page.get_by_label("Your question").fill("Hello?")
    page.keyboard.press("Enter")
    expect(page.locator(".q-notification")).to_contain_text("no agent you may ask")
    assert len(world.engine.calls) == asked


def test_keyboard_alone_is_enough(world, sign_in):
    page = sign_in()
    box = page.get_by_label("Your question")
    expect(box).to_be_focused()
    page.keyboard.type("How do I")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("install it?")
    expect(box).to_have_value("How do I\ninstall it?")
    page.keyboard.press("Enter")
    done(page)
    assert asked(world.engine.calls[-1]) == "How do I\ninstall it?"
    expect(box).to_be_focused()
    page.get_by_role("button", name="New chat").focus()
    page.keyboard.press("/")
    expect(box).to_be_focused()
    expect(box).to_have_value("")
    page.get_by_role("button", name="New chat").focus()
    page.keyboard.press("Control+k")
    expect(box).to_be_focused()
    chip = answer(page).locator(".cite").first
    chip.focus()
    page.keyboard.press("Tab")
    expect(page.locator("#cite-card q")).to_be_visible()  # the next chip shows its quote when focus arrives by key
    page.keyboard.press("Enter")
    expect(page.get_by_label("Close the document")).to_be_focused()
    page.keyboard.press("Escape")
    expect(answer(page).locator(".cite").nth(1)).to_be_focused()  # back to where the document was opened from
    # From the chip on, everything can be reached and shows its focus, until Tab leaves the page.
    for _ in range(12):
        page.keyboard.press("Tab")
        page.wait_for_function(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
                return s.outlineStyle + s.boxShadow !== "nonenone" || !document.hasFocus() ||
                    ["TEXTAREA", "BODY"].includes(e.tagName); }"""
        )


def test_everything_that_can_be_pressed_has_a_name(sign_in):
    page = sign_in()
    ask(page, "How do I install it?")
    done(page)
    nameless = """() => [...document.querySelectorAll('button, a[href], input, textarea, select, iframe, img')].filter(e =>
        !(e.getAttribute('aria-label') || e.innerText?.trim() || e.title || e.hasAttribute('alt') || e.type === 'hidden'))
        .map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert page.evaluate("document.documentElement.lang") == "en-US"


def test_dark_mode_is_remembered_and_starts_as_the_system_is(world, sign_in, chromium):
    page = sign_in()
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.get_by_role("button", name="Dark mode").click()
    expect(page.get_by_role("button", name="Dark mode")).to_have_attribute("aria-pressed", "true")
    page.reload()
    page.get_by_label("Your question").wait_for()
    assert page.evaluate(theme) == "dark"
    expect(page.locator("body")).to_have_class(re.compile("body--dark"))
    page.goto(f"{world.url}/login")
    assert page.evaluate(theme) == "dark"
    dark = chromium.new_context(color_scheme="dark")
    first = dark.new_page()
    first.goto(f"{world.url}/login")
    assert first.evaluate(theme) == "dark"
    dark.close()


def test_empty_chat_suggests_three_questions(world, sign_in):
    page = sign_in()
    ideas = page.locator(".idea")
    expect(ideas).to_have_text(
        ["What does “Installing the service” say?", "How do I scale past one process?", "What is explained in “Keys and grants”?"]
    )
    ideas.first.click()
    expect(done(page)).to_contain_text("three gigabytes")
    assert asked(world.engine.calls[-1]) == "What does “Installing the service” say?"


def test_errors_say_what_to_do_and_can_be_tried_again(world, sign_in):
    page = sign_in()
    ask(page, "limit")
    trouble = page.get_by_role("alert")
    expect(trouble).to_contain_text("You have used your 10 calls of this minute")
    expect(trouble).to_contain_text("Try again in 12 s.")
    expect(trouble).to_contain_text(world.engine.calls[-1].request_id)
    calls = len(world.engine.calls)
    trouble.get_by_role("button", name="Try again").click()
    wait(lambda: len(world.engine.calls) == calls + 1)
    expect(page.locator(".question")).to_have_count(1)
    ask(page, "break")
    expect(page.get_by_role("alert").last).to_contain_text("stopped in the middle of its answer. Ask again.")
    expect(answer(page).locator(".prose")).to_contain_text("could not find")  # what had come stays


def test_a_revoked_key_is_out_at_once(world, sign_in):
    page = sign_in(world.identity.create_key("brief")[1])
    session = next(key for key in world.identity.list_keys("brief") if key.label == "session")
    world.identity.revoke(session.id)
    page.get_by_label("Your question").fill("How do I install it?")
    page.keyboard.press("Enter")
    page.wait_for_url("**/login?next=*")
    assert "three gigabytes" not in page.content()


def test_reader_who_scrolled_up_is_left_alone(world, sign_in):
    page = sign_in()
    page.set_viewport_size({"width": 900, "height": 420})
    ask(page, "Which ways are there?")
    end = "() => { const s = document.querySelector('#scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight; }"
    expect(answer(page)).to_contain_text("Start small")
    page.wait_for_function(f"() => ({end})() < 60")  # follows while the reader is at the end
    page.locator("#scroller").evaluate("(s) => s.scrollTo(0, 40)")
    done(page)
    assert page.locator("#scroller").evaluate("(s) => s.scrollTop") == 40
    page.get_by_role("button", name="Go to the end").click()
    page.wait_for_function(f"() => ({end})() < 2")


def test_payloads_never_run(world, sign_in, samples):
    page = sign_in()
    ask(page, "xss " + " ".join(samples.xss))  # in the message, the model's answer, titles, file names and the thread's title
    shown = done(page)
    expect(shown).to_contain_text("<script>window.__xss=1</script>")
    assert page.locator(".question p").evaluate("(e) => e.textContent").startswith("xss <script>window.__xss=1</script> <img")
    inside = "(e) => [...e.querySelectorAll('script,iframe,img,svg,style,form,input,object,math,details')].map(x => x.outerHTML)"
    assert shown.locator(".prose").evaluate(inside) == []
    attributes = "(e) => [...e.querySelectorAll('*')].flatMap(x => [...x.attributes]).filter(a => /^on/i.test(a.name)).length"
    assert shown.locator(".prose").evaluate(attributes) == 0
    hrefs = shown.locator("a").evaluate_all("(all) => all.map(a => a.protocol)")
    assert set(hrefs) <= {"http:", "https:"}
    for link in shown.locator(".prose a:not(.cite)").all():
        link.dispatch_event("click")
    chip = shown.locator(".cite").first
    chip.hover()
    expect(page.locator("#cite-card strong")).to_have_text(f"Hostile {samples.xss[1]}")
    chip.click()
    passage = page.frame_locator("#panel iframe").locator("#passage")
    assert passage.evaluate("(e) => e.textContent") == samples.hostile
    assert passage.evaluate("window.__xss === undefined")
    page.keyboard.press("Escape")
    added = [world.engine.threads.add("user:admin", payload, time.time() + i) for i, payload in enumerate(samples.xss)]
    page.goto(f"{world.url}/?thread={added[1]}")
    page.locator(".thread.current").wait_for()
    titles = page.locator(".thread-open span").all_text_contents()
    assert titles[: len(added)] == samples.xss[::-1]
    assert page.locator("#side").evaluate(inside.replace(",img,svg", "").replace(",form,input", "")) == []
    page.locator(".thread.current .rename").click()
    expect(page.get_by_label("Title", exact=True)).to_have_value(samples.xss[1])
    page.keyboard.press("Escape")
    page.locator(".thread.current .delete").click()
    expect(page.get_by_role("dialog")).to_contain_text(samples.xss[1])
    for thread in added:
        del world.engine.threads.rows[thread]


def test_injected_script_is_blocked_by_the_policy(sign_in):
    page = sign_in()
    blocked = """() => new Promise((resolve) => {
        addEventListener('securitypolicyviolation', (e) => resolve(e.effectiveDirective), { once: true });
        document.querySelector('#messages').insertAdjacentHTML('beforeend', '<img src="/ui/none.svg" onerror="window.__xss=1">');
        setTimeout(() => resolve('ran'), 20_000);
    })"""
    assert page.evaluate(blocked) == "script-src-attr"
    assert page.evaluate("fetch('http://localhost:9/').then(() => 'sent', (e) => 'refused')") == "refused"
    page.context.problems.clear()


def test_it_looks_right(world, sign_in, samples):
    samples.artifacts.mkdir(exist_ok=True)
    now = time.time()
    ids = [
        world.engine.threads.add("user:admin", "Which limits can a group have, per minute and per endpoint?", now - 4000),
        world.engine.threads.add("user:admin", "Scaling past one process", now - 90_000),
        world.engine.threads.add("user:admin", "Rotate the pepper", now - 300_000),
    ]
    for key in [key for key in world.engine.threads.rows if key not in ids]:
        del world.engine.threads.rows[key]
    page = sign_in()
    page.set_viewport_size({"width": 1280, "height": 860})
    page.screenshot(path=samples.artifacts / "chat-empty.png")
    ask(page, "How do I install it?")
    done(page).locator("summary").first.click()
    page.mouse.move(0, 0)
    page.screenshot(path=samples.artifacts / "chat.png")
    answer(page).locator(".cite").first.hover()
    page.screenshot(path=samples.artifacts / "chat-citation.png")
    page.mouse.move(0, 0)
    page.get_by_role("button", name="Dark mode").click()
    page.screenshot(path=samples.artifacts / "chat-dark.png")
    page.get_by_role("button", name="Dark mode").click()
    ask(page, "Which ways are there?")
    done(page)
    page.set_viewport_size({"width": 390, "height": 780})
    page.screenshot(path=samples.artifacts / "chat-phone.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = answer(page).locator(".wide").evaluate("(e) => [e.scrollWidth > e.clientWidth, e.clientWidth < 390]")
    assert wide == [True, True]  # a wide table scrolls within itself
    expect(page.locator("#side")).to_be_hidden()
    page.get_by_role("button", name="Show conversations").click()
    expect(page.locator("#side")).to_be_visible()
    page.screenshot(path=samples.artifacts / "chat-phone-side.png")
    page.keyboard.press("Escape")
    expect(page.locator("#side")).to_be_hidden()
