"""Operations on the pixels of a whole batch."""
