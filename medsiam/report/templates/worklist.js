"use strict";
(function () {
  const buttons = Array.from(document.querySelectorAll("#filter button"));
  const rows = Array.from(document.querySelectorAll("#rows tr"));
  const status = document.getElementById("shown");
  function show(group) {
    let shown = 0;
    for (const row of rows) {
      row.hidden = group !== "all" && row.dataset.group !== group;
      if (!row.hidden) shown += 1;
    }
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.group === group));
    status.textContent = shown + " of " + rows.length + " shown";
  }
  for (const button of buttons) button.addEventListener("click", function () { show(button.dataset.group); });
  if (rows.length > 0) {
    document.getElementById("filter").hidden = false;
    show("all");
  }
})();
