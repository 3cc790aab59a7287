"""What is mapped; in a module of its own, as Palpable wants it."""


def square(number):
    return number * number
