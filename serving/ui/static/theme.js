// Runs before the first paint: the remembered theme, else the system's.
(() => {
  const media = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("smalti-theme"); } catch { return null; } };
  const apply = () => {
    const theme = stored() || (media.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    document.querySelectorAll("[data-theme-toggle]").forEach((b) => b.setAttribute("aria-pressed", String(theme === "dark")));
    if (window.Quasar?.Dark) window.Quasar.Dark.set(theme === "dark");
  };
  window.smaltiTheme = {
    apply,
    toggle() {
      const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("smalti-theme", next); } catch { /* private window: for this page only */ }
      document.documentElement.dataset.theme = next;
      apply();
    },
  };
  media.addEventListener("change", apply);
  addEventListener("storage", apply);
  apply();
})();
