// What the pages do by themselves: scroll, citation cards, the document panel, copy, the side bar, the theme.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const make = (tag, props, ...children) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children);
    return element;
  };

  // --- scroll: follow the answer while the reader is at the end, stay where they are otherwise
  let pinned = true;
  const scroller = () => $("#scroller");
  let wasAt = 0;
  const toEnd = () => { const s = scroller(); if (s) s.scrollTop = s.scrollHeight; };
  const pin = () => { pinned = true; toEnd(); mark(); };
  const mark = () => $("#to-end")?.classList.toggle("shown", !pinned);
  document.addEventListener("scroll", (event) => {
    if (event.target.id !== "scroller") return;
    const s = event.target;
    const atEnd = s.scrollHeight - s.scrollTop - s.clientHeight < 60;
    if (atEnd || s.scrollTop < wasAt) pinned = atEnd; // what grew meanwhile is no reader who went up
    wasAt = s.scrollTop;
    mark();
    hideCard();
  }, true);
  const grown = new ResizeObserver(() => { if (pinned) toEnd(); });
  const named = () => { // what Quasar leaves without a name or a way in by keyboard
    document.querySelectorAll(".q-loading-bar").forEach((e) => e.setAttribute("aria-label", "Loading"));
    document.querySelectorAll(".q-table__middle:not([tabindex])").forEach((e) => {
      e.tabIndex = 0;
      e.setAttribute("role", "group");
      e.setAttribute("aria-label", "Rows, which scroll sideways");
    });
  };
  const watch = () => { // until Vue has drawn the page
    if (!$(".app, .console")) return requestAnimationFrame(watch);
    window.smaltiTheme?.apply();
    named();
    $(".console-nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
    new MutationObserver(named).observe($(".app, .console"), { childList: true, subtree: true });
    if (scroller()) [$("#messages"), scroller()].forEach((element) => grown.observe(element));
  };

  // --- citation card
  const card = make("div", { className: "cite-card", role: "tooltip", id: "cite-card", hidden: true });
  let cardFor = null;
  const hideCard = () => { card.hidden = true; cardFor?.removeAttribute("aria-describedby"); cardFor = null; };
  const showCard = (chip) => {
    if (!chip.dataset.title) return;
    cardFor = chip;
    const { title, where, quote } = chip.dataset;
    card.replaceChildren(make("strong", { textContent: title }));
    if (where && where !== title) card.append(make("span", { className: "where", textContent: where }));
    if (quote) card.append(make("q", { textContent: quote.length > 420 ? `${quote.slice(0, 420).trimEnd()}…` : quote }));
    card.hidden = false;
    chip.setAttribute("aria-describedby", "cite-card");
    const at = chip.getBoundingClientRect(), size = card.getBoundingClientRect();
    const left = Math.max(12, Math.min(at.left + at.width / 2 - size.width / 2, innerWidth - size.width - 12));
    const above = at.top - size.height - 8;
    card.style.left = `${left}px`;
    card.style.top = `${above > 8 ? above : at.bottom + 8}px`;
  };
  const chipOf = (event) => event.target.closest?.("a.cite, a.source");
  document.addEventListener("mouseover", (event) => { const chip = chipOf(event); if (chip && chip !== cardFor) showCard(chip); });
  document.addEventListener("mouseout", (event) => { if (cardFor && !cardFor.contains(event.relatedTarget)) hideCard(); });
  document.addEventListener("focusin", (event) => { const chip = chipOf(event); if (chip?.matches(":focus-visible")) showCard(chip); });
  document.addEventListener("focusout", hideCard);

  // --- document panel: a plain click opens beside the chat, any other click is the browser's
  let panel = null, opener = null;
  const closePanel = () => {
    if (!panel) return false;
    panel.remove();
    panel = null;
    document.body.classList.remove("with-panel");
    opener?.focus?.();
    return true;
  };
  const openPanel = (href, title, from) => {
    closePanel();
    opener = from;
    const close = make("button", { type: "button", className: "icon-button", textContent: "✕", title: "Close (Esc)" });
    close.setAttribute("aria-label", "Close the document");
    close.addEventListener("click", closePanel);
    const tab = make("a", { href, target: "_blank", rel: "noopener", className: "link", textContent: "Open in a new tab" });
    panel = make("aside", { id: "panel" },
      make("div", { className: "panel-bar" }, make("span", { className: "panel-title", textContent: "Source" }), tab, close),
      make("iframe", { src: href, title: `Document: ${title}` }));
    panel.setAttribute("aria-label", `Document: ${title}`);
    document.body.append(panel);
    document.body.classList.add("with-panel");
    close.focus();
  };
  addEventListener("message", (event) => { if (event.origin === location.origin && event.data === "smalti:close") closePanel(); });

  // --- clicks
  const setSide = (open) => {
    document.body.classList.toggle("side-open", open);
    $("[data-side-open]")?.setAttribute("aria-expanded", String(open));
    if (open) $("#side a, #side button")?.focus();
  };
  document.addEventListener("click", async (event) => {
    const chip = chipOf(event);
    if (chip && !event.ctrlKey && !event.metaKey && !event.shiftKey && chip.getAttribute("href").startsWith("/documents/")) {
      event.preventDefault();
      hideCard();
      openPanel(chip.getAttribute("href"), chip.dataset.title, chip);
      return;
    }
    const away = event.target.closest?.(".prose a[href]:not(.cite)");
    if (away && !away.getAttribute("href").startsWith("#")) {
      event.preventDefault(); // an answer's links never take the chat away
      window.open(away.href, "_blank", "noopener,noreferrer");
      return;
    }
    if (event.target.closest?.("[data-theme-toggle]")) window.smaltiTheme.toggle();
    if (event.target.closest?.("[data-side-open]")) setSide(true);
    else if (event.target.closest?.("[data-side-close], #side .thread-open, #new-chat")) setSide(false);
    if (event.target.closest?.("#to-end")) pin();
    const copy = event.target.closest?.("[data-copy]");
    if (copy) {
      const from = copy.dataset.copy === "code" ? $("code", copy.closest(".code")) : $(".prose", copy.closest(".answer"));
      const label = copy.textContent;
      try { await navigator.clipboard.writeText(from.innerText); copy.textContent = "Copied"; } catch { copy.textContent = "Press Ctrl+C"; getSelection().selectAllChildren(from); }
      setTimeout(() => { copy.textContent = label; }, 1600);
    }
  });
  document.addEventListener("change", async (event) => { // a file that was chosen is handed in; its field is told what became of it
    const input = event.target.closest?.("input[data-upload]");
    if (!input?.files?.length) return;
    const tell = (detail) => input.dispatchEvent(new CustomEvent("uploaded", { detail }));
    input.closest("label")?.setAttribute("aria-busy", "true");
    for (const file of [...input.files]) {
      try {
        const answer = await fetch(`/uploads?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
        tell(await answer.json());
      } catch { tell({ message: `${file.name} could not be sent. Try again.` }); }
    }
    input.closest("label")?.removeAttribute("aria-busy");
    input.value = "";
  });
  const closeTop = () => {
    if (document.body.classList.contains("side-open")) { setSide(false); return true; }
    if (!card.hidden) { hideCard(); return true; }
    return closePanel();
  };
  addEventListener("keydown", (event) => { if (event.key === "Escape" && !$(".round.stop")) closeTop(); });

  document.addEventListener("submit", (event) => { if (event.target.getAttribute("action") === "/logout") sessionStorage.clear(); });
  addEventListener("popstate", () => location.reload());
  addEventListener("DOMContentLoaded", () => { document.body.append(card); watch(); });
  window.smalti = {
    pin, closeTop, closePanel,
    to(selector) { requestAnimationFrame(() => requestAnimationFrame(() => $(selector)?.scrollIntoView({ block: "start" }))); },
    url(path) { if (location.pathname + location.search !== path) history.pushState(null, "", path); },
    say(text) { const live = $("#live"); if (live) live.textContent = text; },
  };
})();
