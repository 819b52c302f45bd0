// What the server wrote into the page when it was built (see page.py).

export const config = JSON.parse(document.getElementById("zi-config").textContent);
