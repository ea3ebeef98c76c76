// A document opened at its passage: bring it to the middle and put the focus there, but never take it from the chat beside.
const framed = window.parent !== window;
const passage = document.getElementById("passage");
const show = () => {
  passage.scrollIntoView({ block: passage.offsetHeight > innerHeight * 0.6 ? "start" : "center" });
  if (!framed) passage.focus({ preventScroll: true });
};
if (passage) {
  show();
  document.fonts?.ready.then(show);
  document.querySelector('a[href="#passage"]')?.addEventListener("click", (event) => { event.preventDefault(); show(); });
}
if (framed) {
  document.body.classList.add("framed");
  addEventListener("keydown", (event) => { if (event.key === "Escape") window.parent.postMessage("smalti:close", location.origin); });
}
