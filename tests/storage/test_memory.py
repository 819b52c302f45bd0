from zimage_ui.request import ImageFormat
from zimage_ui.storage.memory import PictureMemory


def test_what_is_not_safe_is_held_whatever_it_costs():
    memory = PictureMemory(safe_bytes=10)
    for number in range(5):
        memory.hold(str(number), bytes(100), ImageFormat.PNG)
    assert memory.size_bytes == 500
    assert all(memory.get(str(number)) == (bytes(100), ImageFormat.PNG) for number in range(5))


def test_safe_pictures_are_forgotten_oldest_first():
    memory = PictureMemory(safe_bytes=250)
    for name in "abc":
        memory.hold(name, bytes(100), ImageFormat.JPEG)
    for name in "bac":
        memory.release(name)
    assert [memory.get(name) is not None for name in "abc"] == [True, False, True]
    assert memory.size_bytes == 200


def test_a_picture_that_is_not_safe_is_never_forgotten_for_a_safe_one():
    memory = PictureMemory(safe_bytes=0)
    memory.hold("unsafe", b"1234", ImageFormat.PNG)
    memory.hold("safe", b"1234", ImageFormat.PNG)
    memory.release("safe")
    assert memory.get("safe") is None
    assert memory.get("unsafe") == (b"1234", ImageFormat.PNG)


def test_releasing_twice_or_the_unknown_does_nothing():
    memory = PictureMemory(safe_bytes=100)
    memory.hold("a", bytes(60), ImageFormat.PNG)
    for name in ("a", "a", "unknown"):
        memory.release(name)
    memory.hold("b", bytes(40), ImageFormat.PNG)
    memory.release("b")
    assert memory.size_bytes == 100
