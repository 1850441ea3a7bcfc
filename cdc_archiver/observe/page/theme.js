// Light or dark: the system's choice, or the one made here. Runs before the first paint, so that nothing flashes.
"use strict";

(() => {
  const CHOICES = ["system", "light", "dark"];
  let choice = "system";
  try {
    choice = localStorage.getItem("theme") ?? "system";
  } catch {
    // without storage, the choice lasts as long as the page
  }
  if (!CHOICES.includes(choice)) choice = "system";

  function apply() {
    if (choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${choice}`;
  }

  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      try {
        localStorage.setItem("theme", choice);
      } catch {
        // as above
      }
      apply();
    });
  });
})();
