// Light or dark, before anything is drawn; without a choice, what the system says.
(function () {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
