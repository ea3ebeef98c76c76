// A document opened at its passage: bring it to the middle and put the focus there.
const passage = document.getElementById("passage");
const show = () => {
  passage.scrollIntoView({ block: passage.offsetHeight > innerHeight * 0.6 ? "start" : "center" });
  passage.focus({ preventScroll: true });
};
if (passage) {
  show();
  document.fonts?.ready.then(show);
  document.querySelector('a[href="#passage"]')?.addEventListener("click", (event) => { event.preventDefault(); show(); });
}
if (window.parent !== window) {
  document.body.classList.add("framed");
  addEventListener("keydown", (event) => { if (event.key === "Escape") window.parent.postMessage("smalti:close", location.origin); });
}
