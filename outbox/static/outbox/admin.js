// Ticks all rows of a page, counts the ticked ones, and shows a filter's answer at once. Every page works without it.
"use strict";

for (const all of document.querySelectorAll("[data-select-all]")) {
    const form = all.form;
    const boxes = [...form.querySelectorAll("input[name=selected]")];
    const shown = form.querySelector("[data-selected-count]");
    const takeAll = form.querySelector("[data-take-all]");
    const show = () => {
        const ticked = boxes.filter((box) => box.checked).length;
        all.checked = ticked > 0 && ticked === boxes.length;
        all.indeterminate = ticked > 0 && ticked < boxes.length;
        shown.textContent = takeAll?.checked ? "all that match" : `${ticked} selected`;
    };
    all.addEventListener("change", () => {
        for (const box of boxes) box.checked = all.checked;
        show();
    });
    form.addEventListener("change", show);
    show();
}

for (const radio of document.querySelectorAll(".ob-filters input[type=radio]")) {
    radio.addEventListener("change", () => radio.form.requestSubmit());
}
